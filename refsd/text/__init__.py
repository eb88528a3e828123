"""Text in, token ids out: the CLIP tokenizer and its vocabulary."""

from refsd.text.tokenizer import CLIPTokenizer, Piece

__all__ = ["CLIPTokenizer", "Piece"]
