"""The .dcb file: its index, reading, writing, and updates of a base. FORMAT.md describes it."""
