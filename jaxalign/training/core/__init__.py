"""What all trainers share: state, step, loop, optimizer, the open run, and `offline.fit`."""
