"""The page: a camera, questions and answers in a browser, served by `python -m apps.webcam_qa --serve`.

messages.py   what a page may send, checked
cameras.py    where pictures come from: the page's own camera, or the robot's
room.py       one visitor's tabs, each a conversation; asking, forking, undoing, watching
rooms.py      who is there; a page that comes back finds its tabs again
answers.py    one question, as a stream of messages
link.py       one WebSocket
server.py     addresses, headers, snapshots
static/       the page itself, by hand: no build step, nothing from elsewhere
"""
