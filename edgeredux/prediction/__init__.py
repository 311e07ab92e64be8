"""How long a model takes on a device that is not here: operators of its file, times the device's fitted rates."""
