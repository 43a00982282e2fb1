"""Tar shards as a data set: `tar` reads headers, `index` groups members into samples, `fields` decodes, `files` reads.

The room knows the webdataset convention and no channel, and imports nothing until one of its modules is asked for.
"""
