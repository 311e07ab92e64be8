"""What a graph computes channel by channel: what is the same in every run, what nobody needs, what can go together."""
