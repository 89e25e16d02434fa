"""The Python side of mainbox: zygote, worker and what runs a script. The supervisor embeds it and starts `loader`."""
