"""How the embedded model is made: synthetic speech, a codec, a language model, their files."""
