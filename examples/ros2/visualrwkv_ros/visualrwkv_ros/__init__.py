"""A ROS 2 node that watches a camera topic and answers questions about it."""
