// What is raised on bad input or bad arguments: one base class, as in Python. Messages are one line.

/** All errors caused by bad input or bad arguments. */
export class DeepCabacError extends Error {
  static {
    this.prototype.name = "DeepCabacError";
  }
}

/** The bytes are not what a writer of this format wrote: truncated, altered, or another format. */
export class DamagedFileError extends DeepCabacError {
  static {
    this.prototype.name = "DamagedFileError";
  }
}

/** The file does not begin as a .dcb file does. */
export class WrongKindError extends DamagedFileError {
  static {
    this.prototype.name = "WrongKindError";
  }
}

/** The file is well formed, but uses a version or feature that this release does not read. */
export class UnsupportedError extends DeepCabacError {
  static {
    this.prototype.name = "UnsupportedError";
  }
}

/** Decoding would need more memory than `maxBytes`, or than there is. */
export class LimitError extends DeepCabacError {
  static {
    this.prototype.name = "LimitError";
  }
}

/** An argument makes no sense. */
export class OptionError extends DeepCabacError {
  static {
    this.prototype.name = "OptionError";
  }
}

const BY_NAME = { DamagedFileError, WrongKindError, UnsupportedError, LimitError, OptionError };

/** The error of a class's name: from another thread, errors come without their class. */
export function errorNamed(name, message) {
  return new (BY_NAME[name] ?? DeepCabacError)(message);
}
