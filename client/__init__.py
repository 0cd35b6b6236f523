"""The SDK and the `pace` command."""
