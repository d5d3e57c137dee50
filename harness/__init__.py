"""When does knowledge distillation beat plain fine-tuning, and what does it cost?"""

import logging

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it says at every import what would be faster
