"""A Debian arm64 root whose programs qemu runs on this machine: instruction sets and numerics, never time.

Nothing of it needs root's rights: apt works in a folder of its own, packages are unpacked and not installed, and qemu
looks for the root's files itself (-L), without chroot.
"""
