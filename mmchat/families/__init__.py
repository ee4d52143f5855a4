"""One file per model family. The file's name is the family's name; `mmchat.family.load` imports it."""
