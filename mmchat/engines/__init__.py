"""Engines: what runs a family's see, speak and trace. `mmchat.family.Engine` says what one must offer."""

import os

# torch's threads wait for one another by spinning. With anything else at work on the same cores (a browser) each of the
# hundred waits a token then costs a whole time slice: measured on two busy cores, 2 tokens a second; sleeping, 17.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded, so it stands before any import of it
