"""What tools/bench_stream is made of: a checkpoint to prune, the watched command, and the proof of what it wrote."""
