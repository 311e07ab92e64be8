"""What runs on a device: copied there and started by its own python3 (3.8 or newer); the standard library is enough.

NumPy comes with whichever runtime the device has. Only `edgeredux.machine`, `delegates` and `rounds` are used of the
rest, and go along. `store` alone also runs by itself, before anything else is there.
"""
