"""Observers, which evaluate the network or draw pictures between epochs, and the online probe."""
