"""The embedded demo model: scene generator, questions, training recipe and evaluation."""
