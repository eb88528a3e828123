"""Text in, token ids out: the CLIP tokenizer and its vocabulary. T5's is in refsd.text.t5."""

from refsd.text.tokenizer import CLIPTokenizer, Piece

__all__ = ["CLIPTokenizer", "Piece"]
