"""What a training or sampling program takes on devices that need not be there: bytes, collectives, time."""
