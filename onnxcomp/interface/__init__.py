"""What ``import onnxcomp`` offers: the commands as functions, with its words, arrays and objects alike."""
