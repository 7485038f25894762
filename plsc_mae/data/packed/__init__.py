"""Images in archives: tar, zip, Parquet, Arrow, and the binary files of CIFAR and STL-10.

A member of an archive has a path like a file: `shards/0.tar/cat/0.jpg`. `plsc_mae.data.decode.open_regular` opens files
and members alike.
"""
