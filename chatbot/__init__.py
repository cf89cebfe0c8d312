"""What Night School asks: several replies to a turn, and the ranking of them."""

import logging

# peft imports bitsandbytes wherever it is installed, which then laments a kernel that nobody asked for.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
