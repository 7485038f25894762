"""Images in archives: tar, zip, Parquet, Arrow, and the binary files of CIFAR and STL-10.

A member of an archive has a path like a file: `shards/0.tar/cat/0.jpg`. `members.open_member` opens such a path, so all
code that reads files by their paths also reads members.
"""
