"""What is fast and by how much: every benchmark runs our path beside the textbook's; `python -m benchmarks`."""
