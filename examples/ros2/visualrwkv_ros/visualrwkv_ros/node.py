"""The node: images in, questions in, answers out. Everything slow happens outside the executor's threads.

image              sensor_msgs/Image             frames, newest first; dropped where there is no time for them
image/compressed   sensor_msgs/CompressedImage   the same as JPEG or PNG, decoded only if taken
question           std_msgs/String               asked about all that was seen so far
answer             std_msgs/String               the whole answer
answer/partial     std_msgs/String               its pieces, as they come
status             std_msgs/String               JSON: what became of the frames, once a second
"""

from __future__ import annotations

import json
import queue
import threading
from dataclasses import asdict
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from apps.robot import Mailbox
from runtime import GenerateOptions, VisualRWKV, VisualRWKVError
from visualrwkv_ros.images import seconds, to_bgr

WAITING = 4  # questions; a further one is refused with an answer that says so
PARAMETERS: dict[str, Any] = {
    "bundle": "build/demo-int8-cpu",
    "threads": 0,  # 0: one core stays free
    "policy": "latest",  # or "adaptive", or "every"
    "fps": 0.0,  # most frames fed in a second; 0: as many as the model can
    "horizon": 0,  # positions after which the watch begins anew; 0: never
    "window": 0,  # answer from so many last frames instead of one state; 0: one state
    "max_tokens": 64,
}


class VisualRWKVNode(Node):  # type: ignore[misc]
    """Watches `image` and answers `question`."""

    def __init__(self) -> None:
        """Load the bundle of the parameters, and begin to watch."""
        super().__init__("visualrwkv")
        for name, value in PARAMETERS.items():
            self.declare_parameter(name, value)
        self._model = VisualRWKV.load(self._value("bundle"), threads=self._value("threads") or None)
        self._mailbox = Mailbox("image")
        self._watch = self._model.session().watch(
            self._mailbox,
            policy=self._value("policy"),
            fps=self._value("fps") or None,
            horizon=self._value("horizon") or None,
            window=self._value("window") or None,
        )
        self._options = GenerateOptions(max_tokens=self._value("max_tokens"))
        self._answer = self.create_publisher(String, "answer", 10)
        self._partial = self.create_publisher(String, "answer/partial", 50)
        self._status = self.create_publisher(String, "status", 10)
        self.create_subscription(Image, "image", self._on_image, qos_profile_sensor_data)
        self.create_subscription(CompressedImage, "image/compressed", self._on_compressed, qos_profile_sensor_data)
        self.create_subscription(String, "question", self._on_question, 10)
        self.create_timer(1.0, self._tell_status)
        self._refused: set[str] = set()  # encodings that were complained about
        self._questions: queue.Queue[str | None] = queue.Queue(WAITING)
        self._worker = threading.Thread(target=self._answer_questions, name="answers", daemon=True)
        self._worker.start()
        self.get_logger().info(f"watching {self._value('bundle')}")

    def destroy_node(self) -> None:
        """Stop answering and watching, and let go of the model."""
        self._watch.cancel()
        while True:
            try:
                self._questions.put_nowait(None)
                break
            except queue.Full:
                self._questions.get_nowait()
        self._worker.join()
        self._mailbox.close()  # first: the reader of the watch waits in it
        self._watch.close()
        self._model.close()
        super().destroy_node()

    def _on_image(self, message: Any) -> None:
        try:
            self._mailbox.put(to_bgr(message), seconds(message.header.stamp))
        except ValueError as error:
            if message.encoding not in self._refused:
                self._refused.add(message.encoding)
                self.get_logger().warning(f"frames are left out: {error}")

    def _on_compressed(self, message: Any) -> None:
        self._mailbox.put(bytes(message.data), seconds(message.header.stamp))

    def _on_question(self, message: Any) -> None:
        try:
            self._questions.put_nowait(message.data)
        except queue.Full:
            self._publish(self._answer, f"(too busy: {WAITING} questions are waiting)")

    def _answer_questions(self) -> None:
        while (question := self._questions.get()) is not None:
            text = ""
            try:
                for chunk in self._watch.ask(question, options=self._options):
                    text += chunk.text
                    if chunk.text:
                        self._publish(self._partial, chunk.text)
            except VisualRWKVError as error:
                self.get_logger().error(str(error))
                text = f"(no answer: {error.found})"
            self._publish(self._answer, text)

    def _tell_status(self) -> None:
        told = {**asdict(self._watch.stats), "tokens": self._watch.tokens, "replaced": self._mailbox.dropped}
        if self._watch.error is not None:
            told["error"] = self._watch.error.found
        self._publish(self._status, json.dumps(told))

    def _publish(self, publisher: Any, text: str) -> None:
        publisher.publish(String(data=text))

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value


def main(args: list[str] | None = None) -> None:
    """Spin until Ctrl-C."""
    rclpy.init(args=args)
    node = None
    try:
        node = VisualRWKVNode()
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
