"""What tools/bench_graphs and tests measure: passes on files larger than one protobuf can hold."""
