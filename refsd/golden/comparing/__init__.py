"""What a port wrote against a pack: reading it, judging it, and naming the mistake."""
