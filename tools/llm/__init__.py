"""What tools/bench_llm does: a checkpoint, the stages it goes through, and decoders timed in turns."""
