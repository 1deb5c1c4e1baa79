//! The SVM backend (APM Vol. 2 chapter 15).
