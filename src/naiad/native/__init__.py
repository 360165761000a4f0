"""The only place with ctypes: owners of llama.cpp's handles."""
