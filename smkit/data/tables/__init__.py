"""Tables as data sets: a format cuts files into `blocks` and parses them, `table` reads rows, `cache` keeps them.

The room knows formats of rows and no channel, and imports nothing until one of its modules is asked for.
"""
