"""Telling receivers: what each format looks like, where we may connect to, when to try, and the thread that does it.

``formats`` renders a notice, ``reach`` decides which addresses a receiver may have, ``sending`` makes one attempt,
``schedule`` says when the next one is due, ``dispatch`` empties the outbox.
"""
