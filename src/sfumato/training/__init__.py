"""One loop; objectives say what differs between methods, hooks what happens beside it."""
