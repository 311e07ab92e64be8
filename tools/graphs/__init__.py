"""What tools/bench_graphs measures: passes on files larger than one protobuf can hold, and on graphs of others."""
