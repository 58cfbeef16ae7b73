"""The review queue: clinicians look at drafts, say what they think of them, and close them."""
