"""Models built on Hopweave's attention, in torch."""
