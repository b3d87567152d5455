"""The whole program at full size on a CPU, from random weights in the published layouts: `make full-size`."""
