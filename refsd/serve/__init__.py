"""The server: a page, a native API and those that clients already speak. Above refsd.cli."""
