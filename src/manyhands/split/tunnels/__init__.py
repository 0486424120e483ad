"""Ways to a trainer that nobody can dial: a port of another machine, forwarded to this one.

What travels is encrypted from end to end and the invite pins the trainer's key, so whoever runs the tunnel sees
traffic and no content.
"""
