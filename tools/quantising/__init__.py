"""What tools/bench_quantise measures."""
