"""From a prompt to a picture: five pure stages, and the class that people expect on top."""
