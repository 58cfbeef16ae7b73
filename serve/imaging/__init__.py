"""Image intake: what a client sends becomes the pixels that the model was trained to see."""
