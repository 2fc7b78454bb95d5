// Arrow's statuses and Parquet's exceptions become one sentence that names the file.
#include "data/arrow_files.h"

#include <arrow/io/compressed.h>
#include <arrow/io/file.h>
#include <arrow/util/compression.h>
#include <parquet/column_reader.h>
#include <parquet/exception.h>
#include <parquet/file_reader.h>
#include <parquet/properties.h>

#include <array>
#include <utility>
#include <vector>

#include "core/error.h"

namespace picotron {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kBuffer = int64_t{1} << 20;

// The first line: what follows it is where in Arrow it was found.
std::string first_line(const std::string& text) {
  return text.substr(0, text.find('\n'));
}

template <class T>
T value_of(arrow::Result<T> result, const fs::path& file) {
  if (!result.ok())
    throw user_error("{}: cannot be read: {}", file.string(),
                     first_line(result.status().message()));
  return std::move(result).ValueUnsafe();
}

std::shared_ptr<arrow::io::ReadableFile> open_file(const fs::path& file) {
  std::error_code ignored;
  if (!fs::is_regular_file(file, ignored)) throw user_error("{}: is no file", file.string());
  return value_of(arrow::io::ReadableFile::Open(file.string()), file);
}

class FileStream : public ByteStream {
 public:
  explicit FileStream(const fs::path& file) : file_(file), raw_(open_file(file)), stream_(raw_) {
    const std::string extension = file.extension().string();
    if (extension != ".gz" && extension != ".zst") return;
    // Nothing, compressed, is not nothing: Arrow would take what a cut-off copy left for an end.
    if (value_of(raw_->GetSize(), file) == 0)
      throw user_error("{}: is empty, which no compressed file is; fetch or make it anew",
                       file.string());
    codec_ = value_of(arrow::util::Codec::Create(extension == ".gz" ? arrow::Compression::GZIP
                                                                    : arrow::Compression::ZSTD),
                      file);
    stream_ = value_of(arrow::io::CompressedInputStream::Make(codec_.get(), raw_), file);
  }
  ~FileStream() override { static_cast<void>(stream_->Close()); }
  size_t read(std::span<char> out) override {
    return static_cast<size_t>(
        value_of(stream_->Read(static_cast<int64_t>(out.size()), out.data()), file_));
  }
  int64_t file_bytes() const override { return raw_->Tell().ValueOr(0); }

 private:
  fs::path file_;
  std::shared_ptr<arrow::io::ReadableFile> raw_;
  std::unique_ptr<arrow::util::Codec> codec_;
  std::shared_ptr<arrow::io::InputStream> stream_;
};

class ParquetFile : public ParquetColumn {
 public:
  ParquetFile(const fs::path& file, const std::string& column) : file_(file) {
    guarded([&] {
      parquet::ReaderProperties properties;
      properties.enable_buffered_stream();
      properties.set_buffer_size(kBuffer);
      properties.set_page_checksum_verification(true);
      raw_ = open_file(file);
      reader_ = parquet::ParquetFileReader::Open(raw_, properties);
      find(column);
    });
  }

  bool next(std::string& text) override {
    return guarded([&] {
      while (row_ == rows_) {
        if (!read_batch()) return false;
      }
      const bool is_null = most_level_ > 0 && levels_[row_] < most_level_;
      const parquet::ByteArray none, &value = is_null ? none : values_[value_++];
      text.assign(reinterpret_cast<const char*>(value.ptr), value.len);
      ++row_;
      return true;
    });
  }

  void skip(int64_t rows) override {
    const auto metadata = reader_->metadata();
    for (; next_group_ < metadata->num_row_groups() && rows > 0; ++next_group_) {
      const int64_t in_group = metadata->RowGroup(next_group_)->num_rows();
      if (in_group > rows) break;
      rows -= in_group;
    }
    for (std::string dropped; rows > 0 && next(dropped); --rows) continue;
  }

  int64_t file_bytes() const override { return read_bytes_; }

 private:
  template <class F>
  auto guarded(const F& read) -> decltype(read()) {
    try {
      return read();
    } catch (const parquet::ParquetException& error) {
      throw user_error("{}: is damaged or no Parquet file: {}", file_.string(),
                       first_line(error.what()));
    }
  }

  void find(const std::string& column) {
    const parquet::SchemaDescriptor& schema = *reader_->metadata()->schema();
    const auto is_text = [](const parquet::ColumnDescriptor& c) {
      return c.physical_type() == parquet::Type::BYTE_ARRAY && c.max_repetition_level() == 0;
    };
    std::vector<std::string> texts;
    for (int i = 0; i < schema.num_columns(); ++i) {
      const std::string name = schema.Column(i)->path()->ToDotString();
      if (name == column) column_ = i;
      if (is_text(*schema.Column(i))) texts.push_back(name);
    }
    const std::string there =
        texts.empty() ? "it has none" : fmt::format("those of text are {}", fmt::join(texts, ", "));
    if (column_ < 0)
      throw user_error("{}: has no column {}; {} (dataset.text_column)", file_.string(), column,
                       there);
    if (!is_text(*schema.Column(column_)))
      throw user_error("{}: column {} is not of strings; {} (dataset.text_column)", file_.string(),
                       column, there);
    most_level_ = schema.Column(column_)->max_definition_level();
  }

  // As many rows as the page has, at most the buffers' size. False at the end of the file.
  bool read_batch() {
    while (pages_ == nullptr || !pages_->HasNext()) {
      if (group_ != nullptr) end_group();
      if (next_group_ == reader_->metadata()->num_row_groups()) return group_ = nullptr, false;
      group_ = reader_->RowGroup(next_group_++);
      pages_ = std::static_pointer_cast<parquet::ByteArrayReader>(group_->Column(column_));
    }
    int64_t values = 0;
    rows_ = static_cast<size_t>(pages_->ReadBatch(
        static_cast<int64_t>(values_.size()), levels_.data(), nullptr, values_.data(), &values));
    rows_of_group_ += static_cast<int64_t>(rows_);
    row_ = value_ = 0;
    return true;
  }

  // A page whose header lies about its rows ends a group early, and Arrow does not say so.
  void end_group() {
    read_bytes_ += group_->metadata()->total_compressed_size();
    const int64_t promised = group_->metadata()->num_rows();
    if (rows_of_group_ != promised)
      throw user_error("{}: is damaged or no Parquet file: row group {} has {} of its {} rows",
                       file_.string(), next_group_ - 1, rows_of_group_, promised);
    rows_of_group_ = 0;
  }

  fs::path file_;
  std::shared_ptr<arrow::io::ReadableFile> raw_;
  std::unique_ptr<parquet::ParquetFileReader> reader_;
  int column_ = -1, next_group_ = 0;
  int16_t most_level_ = 0;
  std::shared_ptr<parquet::RowGroupReader> group_;
  std::shared_ptr<parquet::ByteArrayReader> pages_;
  std::array<int16_t, 256> levels_{};
  std::array<parquet::ByteArray, 256> values_{};
  size_t rows_ = 0, row_ = 0, value_ = 0;       // of the batch; the next one's place
  int64_t rows_of_group_ = 0, read_bytes_ = 0;  // so far
};

}  // namespace

std::unique_ptr<ByteStream> open_bytes(const fs::path& file) {
  return std::make_unique<FileStream>(file);
}

std::unique_ptr<ParquetColumn> open_parquet(const fs::path& file, const std::string& column) {
  return std::make_unique<ParquetFile>(file, column);
}

}  // namespace picotron
