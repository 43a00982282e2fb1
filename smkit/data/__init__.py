"""From what a channel holds to the batches of a step: `layouts` reads, `order` decides which samples, `loader` fetches.

The room knows neither jobs nor models nor devices, and imports nothing until one of its modules is asked for.
"""
