"""From what a channel holds to the batches of a step.

`layouts` makes a data set of files, `order` and `epoch` decide which samples a batch has, `fetch` reads it, `loader`
joins them. The room knows neither jobs nor models nor devices, and imports nothing until one of its modules is asked
for.
"""
