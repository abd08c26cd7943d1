"""Guest images: a kernel, and the file trees that a virtual machine starts from."""
