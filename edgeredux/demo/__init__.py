"""Models that edgeredux makes itself, so that a recipe for language models runs where none is at hand."""
