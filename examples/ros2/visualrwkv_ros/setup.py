"""What `colcon build` installs."""

from setuptools import setup

setup(
    name="visualrwkv_ros",
    version="0.1.0",
    packages=["visualrwkv_ros"],
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/visualrwkv_ros"]),
        ("share/visualrwkv_ros", ["package.xml"]),
    ],
    install_requires=["setuptools"],
    entry_points={"console_scripts": ["node = visualrwkv_ros.node:main"]},
)
