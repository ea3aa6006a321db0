"""Conversations -> one text: messages, templates and the sandbox that they run in."""
