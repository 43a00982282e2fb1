"""The commands of `smkit`, one room for each kind: what is asked for, done and shown. Nothing here is API."""
