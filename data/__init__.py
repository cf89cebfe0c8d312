"""What Night School remembers: who said what, who preferred what, which version serves."""
