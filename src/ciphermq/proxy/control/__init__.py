"""The control language: words in, changes and sentences out."""
